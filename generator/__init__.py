"""The reader: prompts, log p(y | x, z), and answers."""

from e2erag.generator.generator import Answers, Generator, GeneratorConfig
from e2erag.generator.prompt import Prompt, Row, Together

__all__ = ["Answers", "Generator", "GeneratorConfig", "Prompt", "Row", "Together"]
