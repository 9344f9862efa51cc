"""Energy counters of AMD Instinct cards, and the NPU of AMD processors."""
