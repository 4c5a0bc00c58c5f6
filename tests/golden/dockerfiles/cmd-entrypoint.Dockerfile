FROM a
CMD
CMD []
CMD ["a"]
CMD a b
CMD   ["a" , "b"]  
ENTRYPOINT
ENTRYPOINT []
ENTRYPOINT ["a", "$B"]
ENTRYPOINT exec a "b c"
cmd [""]
