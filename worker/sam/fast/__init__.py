"""The fast decoder: SAM's mask decoder with folded weights and low-rank image terms, prompts spread over cores."""
