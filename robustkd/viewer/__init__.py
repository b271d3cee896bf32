"""The viewer: campaigns, samples and conversations as pages on this machine, or as files. Importing it imports no server and no torch."""
