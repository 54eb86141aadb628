"""The plant: a simulated fleet whose draw obeys its caps, and the closed loop around it."""
