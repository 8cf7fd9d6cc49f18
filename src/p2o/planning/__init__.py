"""What a run would do and take, told before anything is spent: ``debug=plan``."""
