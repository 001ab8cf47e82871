"""What a user may ask for: configurations found, read and checked, and mistakes told in one line."""
