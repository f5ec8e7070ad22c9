"""What several tests need: written once, here."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
