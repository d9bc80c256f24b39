"""Networks of other frameworks as Keras models with the same logits, and back to plain layers."""

from dynzoo.utils.lazy import loader

__getattr__, __all__ = loader(
    __name__,
    {
        "ConversionError": "errors",
        "from_onnx": "onnx_graph",
        "from_torch": "torch_graph",
        "to_flows": "flows",
        "to_plain": "plain",
    },
)
