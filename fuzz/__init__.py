"""Damaged and hostile files, by the thousand: whatever is read must be refused with an error of ours, or be right."""
