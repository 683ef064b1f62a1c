"""Other products' data and agents, made part of the loop. Knows no platform."""
