"""Read the evidence of LLM serving and say what happened. No torch in here."""
