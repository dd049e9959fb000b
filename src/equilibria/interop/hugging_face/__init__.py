"""Models for and from Hugging Face's transformers 5; importing this registers them with its Auto classes"""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from equilibria.interop.hugging_face.modeling import EquilibriaConfig, EquilibriaForCausalLM, EquilibriaModel

__all__ = ["EquilibriaConfig", "EquilibriaForCausalLM", "EquilibriaModel"]

AutoConfig.register(EquilibriaConfig.model_type, EquilibriaConfig)
AutoModel.register(EquilibriaConfig, EquilibriaModel)
AutoModelForCausalLM.register(EquilibriaConfig, EquilibriaForCausalLM)
