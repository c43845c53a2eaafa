"""Drawing and saving of figures."""
