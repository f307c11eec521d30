"""Animates a photo by a running studio: python studio_client.py http://127.0.0.1:7860 PHOTO speech OUT.mp4"""

import sys
import time

import httpx

url, photo, motion, output = sys.argv[1:]
with httpx.Client(base_url=url, timeout=60) as studio, open(photo, "rb") as file:
    sent = studio.post("/api/uploads", params={"kind": "photo", "name": photo}, content=file.read()).raise_for_status()
    asked = {"verb": "animate", "portrait": sent.json()["id"], "motion": motion, "seconds": 1}
    job = studio.post("/api/jobs", json=asked).raise_for_status().json()
    while job["state"] in ("queued", "running"):
        time.sleep(0.5)
        job = studio.get(f"/api/jobs/{job['id']}").json()
    if job["state"] != "done":
        sys.exit(job["error"] or job["state"])
    with open(output, "wb") as video:
        video.write(studio.get(job["files"][0]["url"]).content)
