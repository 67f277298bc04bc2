# mypy: ignore-errors
"""The file that one writes in an evening: FastAPI, Pillow, a model. A plain `def` endpoint, so that FastAPI runs it in
threads and Pillow and the engine, which release the GIL, use both cores."""

import os

import uvicorn
from fastapi import FastAPI, UploadFile

from benchmarks.peers.model import PORT, answer, load_model, preprocess

app = FastAPI()
model = load_model()


@app.get("/health")
def health():
    return {"ok": True}


@app.post("/classify")
def classify(file: UploadFile):
    rows = preprocess(file.file.read())[None]
    return answer(model(rows)[0])


if __name__ == "__main__":
    workers = int(os.environ.get("PEER_WORKERS", "1"))
    uvicorn.run("benchmarks.peers.naive:app", port=PORT, workers=workers, access_log=False, log_level="warning")
