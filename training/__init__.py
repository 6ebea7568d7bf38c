"""What the scripts share and the Hub never needs: data, pairing, fine-tuning, tests by image condition, model cards."""
