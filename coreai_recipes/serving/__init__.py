"""OpenAI's HTTP API over bundles: `recipe serve`. Starlette, uvicorn and prometheus-client are the extra `serve`."""
