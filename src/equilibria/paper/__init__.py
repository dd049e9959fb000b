"""The tables of the DEQ paper (Bai, Kolter and Koltun 2019, arXiv:1909.01377), with our figures beside theirs."""
