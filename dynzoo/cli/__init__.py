"""The command: one file a subcommand. Nothing else imports it."""
