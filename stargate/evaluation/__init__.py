"""What is measured on test pairs:

gold log-prob with its controls, and what the dialogues elicit.
"""
