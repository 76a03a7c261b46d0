"""TL1 of bitnet.cpp, its lookup-table type for ARM; the order of its values is that of tiles chosen at build time."""

from tritgguf.converter.gguf_io.foreign_type import ForeignType


class Tl1(ForeignType):
    name = "TL1"
    numbers = (38,)
    origin = "bitnet.cpp (microsoft/BitNet)"
    loaded_by = "only a bitnet.cpp that was built for this model"
    refusal = (
        "its order depends on the tiles in kernel_config.ini, which the file doesn't have; start from the model's "
        "Hugging Face checkpoint or its I2_S file"
    )


FOREIGN = Tl1()
