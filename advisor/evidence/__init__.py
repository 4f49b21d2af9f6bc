"""Published results the rules rest on."""
