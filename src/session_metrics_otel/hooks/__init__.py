"""The only code that touches SQLAlchemy: one module for each thing that is hooked."""
