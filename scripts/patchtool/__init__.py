"""Apply, verify and maintain the patch set; standard library only, never imports sglang."""
