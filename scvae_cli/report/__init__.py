"""Parts of figures that several tools use, and the saving of figures."""
