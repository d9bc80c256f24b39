"""What is known of each layer and operation: its Lipschitz constant and its float64 twin."""
