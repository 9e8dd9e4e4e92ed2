"""What every route that undoes a removal is given."""

from pydantic import BaseModel, Field


class Token(BaseModel):
    token: str = Field(min_length=1, max_length=200, description="as the removal answered it")
