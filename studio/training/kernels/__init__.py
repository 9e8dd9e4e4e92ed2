"""Operations that a frozen U-Net does not have from its library in one pass each, with their backward passes.

On a CUDA GPU with Triton they are kernels of our own; elsewhere plain torch, so that the same graph can be compared on any machine.
"""
