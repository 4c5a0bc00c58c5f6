FROM base
ENV A=1
ENV B="two words" C=three\ words D='$A "q"'
ENV E= F="" G=a"b c"'d e'f
ENV H the rest  "of it" \
  and more
ENV I=$A"${A:-x y}"\ z
ENV "J K"=l
ENV M=n=o
ENV P x=y
