"""The command: one file a subcommand. Nothing else imports it."""

from dynzoo.cli.program import main as main
