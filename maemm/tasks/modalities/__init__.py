"""``maemm modalities``: what each modality of a joint model is worth, alone and beside the others."""
