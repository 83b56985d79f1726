"""The page that people talk to models in: conversations, kept; answers, written in the server; documents, cited."""
