"""TL2 of bitnet.cpp, its lookup-table type for x86; its old llama.cpp numbers it as llama.cpp now does MXFP4."""

from tritgguf.converter.gguf_io.foreign_type import ForeignType


class Tl2(ForeignType):
    name = "TL2"
    numbers = (39,)
    origin = "bitnet.cpp (microsoft/BitNet)"
    loaded_by = "only a bitnet.cpp that was built for this model"
    refusal = (
        "its order depends on the tiles in kernel_config.ini, which the file doesn't have; start from the model's "
        "Hugging Face checkpoint or its I2_S file"
    )


FOREIGN = Tl2()
