"""What a trained network is used for: scores, predictions, pseudo labels."""
