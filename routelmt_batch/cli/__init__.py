"""Commands: their options, what they show, how they end. All else is below."""
