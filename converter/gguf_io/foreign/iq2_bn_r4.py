"""IQ2_BN_R4 of ik_llama.cpp: IQ2_BN with four rows interleaved for its matrix products."""

from tritgguf.converter.gguf_io.foreign_type import ForeignType


class Iq2BnR4(ForeignType):
    name = "IQ2_BN_R4"
    numbers = (335,)
    origin = "ik_llama.cpp"
    loaded_by = "only ik_llama.cpp"
    refusal = (
        "it interleaves four rows in an order that isn't known here; start from the model's Hugging Face checkpoint or "
        "its IQ2_BN, IQ1_BN or I2_S file"
    )


FOREIGN = Iq2BnR4()
