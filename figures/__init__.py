"""The course's drawings: `svg` is the pencil, each other module draws one set."""
