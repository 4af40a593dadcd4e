"""An exported model, asked line by line or over HTTP."""
