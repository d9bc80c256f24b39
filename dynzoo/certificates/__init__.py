"""Certificates: a proved Lipschitz bound of a Keras model and the radii that follow from it."""

from dynzoo.certificates.audit import Audit as Audit
from dynzoo.certificates.audit import AuditViolation as AuditViolation
from dynzoo.certificates.audit import audit as audit
from dynzoo.certificates.certificate import Certificate as Certificate
from dynzoo.certificates.certificate import certify as certify
from dynzoo.certificates.errors import ReferenceMismatchError as ReferenceMismatchError
from dynzoo.certificates.errors import StaleCertificateError as StaleCertificateError
from dynzoo.certificates.errors import UncertifiableLayerError as UncertifiableLayerError
from dynzoo.certificates.lipschitz import LayerBound as LayerBound
from dynzoo.certificates.local.certificate import LocalCertificate as LocalCertificate
from dynzoo.certificates.local.certificate import certify_local as certify_local
from dynzoo.certificates.prediction_sets import PredictionSets as PredictionSets
from dynzoo.certificates.prediction_sets import prediction_sets as prediction_sets
from dynzoo.certificates.rounding.program import forward_float64 as forward_float64
from dynzoo.certificates.smoothing import SmoothedClassifier as SmoothedClassifier
from dynzoo.certificates.smoothing import smooth as smooth
