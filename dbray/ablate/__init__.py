"""The paper's ablations as commands: the same subjects trained in several variants, and compared.

`variants` lists the ablations, each a function from a job to its variants. Every variant and seed
is a job in one storage, which shares class images and whatever models two variants have in common.
"""
