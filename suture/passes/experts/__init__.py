"""Mixtures of experts: made from dense layers, cut out of them, and made dense again."""
