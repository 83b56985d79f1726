"""An HTTP server that speaks OpenAI's protocol, in front of any `Backend`s. Needs the extra `serve`.

A request passes `gate` (key, size, rate), becomes values in `bodies`, `messages` and `wanted`, is computed by a backend
behind `work`, and goes out through `chat`, `completions`, `embeddings` or `older`, whole or as a stream (`stream`).
"""
