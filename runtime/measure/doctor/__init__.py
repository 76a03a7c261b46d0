"""What runs on this computer: the build of llama.cpp, its products of every tensor type, and who else is there."""
