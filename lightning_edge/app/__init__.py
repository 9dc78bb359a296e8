"""The Hydra application behind the command `lightning-edge`; nothing else imports hydra."""
