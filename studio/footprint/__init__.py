"""What a training run takes of a card: arithmetic on configs, without torch and before anything is loaded."""
