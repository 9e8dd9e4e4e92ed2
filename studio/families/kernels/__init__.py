"""Operations that a frozen base does not have from its library in one pass each, with their backward passes where it is trained beside.

On a CUDA GPU with Triton they are kernels of our own; elsewhere plain torch, so that the same graph can be compared on any machine.
"""
