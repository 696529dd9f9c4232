"""What a trained model goes on to learn."""
