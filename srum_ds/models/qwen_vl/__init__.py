"""Qwen-VL as a judge: a part that several designs share, no design of its own.

Qwen-Image conditions its diffusion transformer on a Qwen2.5-VL, BLIP3-o its on another; both judge with it. A design
loads the library's module (``Qwen2_5_VLForConditionalGeneration``, or ``Qwen3VLForConditionalGeneration``) into its own
``module`` and hands it to ``QwenVLAnswerer`` with a ``Chat`` (the tokenizer and its template) and a ``PictureReader``
(the image processor). Nothing here needs torchvision.
"""
