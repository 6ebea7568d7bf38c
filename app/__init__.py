"""The `vtfusion` command, and pictures and pages for people."""
