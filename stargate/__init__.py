"""stargate: self-play that teaches a language model to ask clarifying questions (STaR-GATE)."""

__version__ = "0.1.0"
