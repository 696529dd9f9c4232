"""The kinds of attention."""

from __future__ import annotations

from homespun.model.attention.grouped import GroupedAttention

Attention = GroupedAttention
"""The union of the kinds; another kind is one more file and one more word here."""
