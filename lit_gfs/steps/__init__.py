"""What surrounds an optimizer step under Lightning: guards, terms of a loss, announcements."""
