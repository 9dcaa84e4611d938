"""Cluster files for `ray up`, and the little that they run beside Ray and Archipelago itself."""
