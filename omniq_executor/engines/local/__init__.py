"""The engine that runs calls on processes of this machine."""
